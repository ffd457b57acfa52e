"""Images of all flavours, sound and damaged, and what is read of them."""
