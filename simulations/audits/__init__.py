"""Privacy audits: what an attacker learns from what leaves the sites, measured."""
