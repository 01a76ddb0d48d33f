"""The swarm: identity, wire, who has a path, whom to ask, what to send. Knows no Nix policy."""
