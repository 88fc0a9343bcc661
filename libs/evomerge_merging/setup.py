"""Builds the native kernels where there is a C compiler; without one torch does their work."""  # noqa: INP001

from setuptools import Extension, setup

KERNELS = Extension(
    "evomerge_merging.native._kernels",
    ["src/evomerge_merging/native/kernels.c"],
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,
)
setup(ext_modules=[KERNELS])
