"""The border to Nix: narinfo, trust, upstreams, the substituter, seeding and the command line."""
