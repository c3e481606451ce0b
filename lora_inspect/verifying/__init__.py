"""The content of a merged model: the share of each adapter, and findings on the rest."""
