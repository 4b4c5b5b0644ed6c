"""Plans that compute fewer steps: what reuse loses, the search, and the files beside a run."""
