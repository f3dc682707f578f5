"""Probing: can the agent be located from the predicted latents alone?"""
