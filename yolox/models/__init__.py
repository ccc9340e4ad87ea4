"""The YOLOX networks: backbones, necks, head, decoding."""
