"""Several processes as one: ranks, and models replicated or sharded over them."""
