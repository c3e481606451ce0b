"""How much of each adapter a merged model carries, and what is wrong with the rest."""
