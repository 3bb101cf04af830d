"""The networks of the paper: its tables, their layers, encoder, decoder and discriminator."""
