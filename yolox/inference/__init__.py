"""How a CPU machine runs any nn.Module fast: methods, measurement, artifacts.

``from yolox.inference.optimizer import InferenceOptimizer`` is the way in; ``artifact.load_model`` runs what it saved.
"""
