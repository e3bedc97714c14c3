"""What a comparison of decoding methods stands on."""
