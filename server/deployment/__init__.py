"""The coordinator's side of a real federation: keys and certificates, processes, the proxy, and Flower's control."""
