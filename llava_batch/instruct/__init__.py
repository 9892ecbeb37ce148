"""Instruction data: answers filtered into conversations, and exported as trainers read them."""
