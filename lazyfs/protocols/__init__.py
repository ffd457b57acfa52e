"""What is spoken on the wire, without the wire: codecs that front ends and sources share."""
