"""Which recipe trains the better model: small models, each trained on what one recipe takes, and
measured on pairs that none of them saw.

What does not belong here: the asset (``defs.assets.recipe_comparison``) and its figure
(``stats.compared``).
"""
