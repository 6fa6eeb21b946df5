"""Any 2-D images: X-ray, OCT, dermoscopy and others, without a detector."""
