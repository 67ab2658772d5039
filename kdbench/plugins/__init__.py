"""Methods by name, their hyper-parameters, and what is known of all of them."""
