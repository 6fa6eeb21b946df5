"""From JPEG bytes to augmented images: one contract, a CPU and a DALI backend."""
