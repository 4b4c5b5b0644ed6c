"""nn.Modules on the ops, with upstream's parameter names."""
