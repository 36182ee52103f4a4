"""How the controller reaches the machines: one agent actor per Ray node."""
