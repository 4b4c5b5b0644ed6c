"""Training and sampling on several processes: ranks, and models replicated or sharded over them."""
