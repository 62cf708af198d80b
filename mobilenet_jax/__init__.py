"""MobileNets (Howard et al., 2017) in JAX: models, training, sweeps, figures."""
