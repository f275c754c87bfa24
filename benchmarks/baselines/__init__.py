"""Methods to compare with. Each solves a prepared scan: `method(problem, λ)` → images of unit scale."""
