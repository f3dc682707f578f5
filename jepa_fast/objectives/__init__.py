"""What a training step minimises: VICReg, InfoNCE and the mixture likelihood of one step."""
