"""The client side of OCI's distribution protocol: pushing images to registries."""
