"""ImageNet-1K in the forms in which it lies on disks."""
