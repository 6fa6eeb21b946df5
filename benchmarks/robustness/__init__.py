"""What damaged and hostile input does to the product."""
