"""The source of the CUDA kernels, compiled for the processor, where each thread runs in turn.

A warp is one thread here, so that sums over one need no others; test_cuda.py runs them on a GPU.
"""

import ctypes
import subprocess

import pytest
import torch

from popqorn_train.kernels import cuda, enclosing, rows
from popqorn_train.kernels.compiler import SOURCE, compilers
from popqorn_train.kernels.library import SWITCH, cuda_loops, kernels
from popqorn_train.kernels.signatures import ARGUMENTS, NAMES, pointers
from tests.kernels.test_enclosing import domain_of, products
from tests.problems import F64

pytestmark = pytest.mark.skipif(kernels().library is None, reason="no compiled loops")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64])
# What CUDA defines; `run` calls a kernel once for every thread.
SHIM = """
#include <cmath>
#include <cstdint>
#include <cstring>
#define __CUDACC__
#define __global__
#define WARP 1
struct Index { int64_t x; };
static Index blockIdx, blockDim, threadIdx;
template <class To, class From> static To same_bits(From x) { To y; std::memcpy(&y, &x, sizeof y); return y; }
static int32_t __float_as_int(float x) { return same_bits<int32_t>(x); }
static float __int_as_float(int32_t x) { return same_bits<float>(x); }
static int64_t __double_as_longlong(double x) { return same_bits<int64_t>(x); }
static double __longlong_as_double(int64_t x) { return same_bits<double>(x); }
template <class R> static R __shfl_xor_sync(unsigned, R x, int) { return x; }
extern "C" void thread(int64_t block, int64_t size, int64_t at) {
  blockIdx.x = block, blockDim.x = size, threadIdx.x = at;
}
"""  # noqa: E501
SIZE = 4  # threads of a block
ROWS = 131  # four warps have, and three of a fifth


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "host.cpp").write_text(SHIM + '#include "kernels.cu"\n')
    call = [*compilers()[0], "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{SOURCE}"]
    subprocess.run([*call, folder / "host.cpp", "-o", folder / "host.so"], check=True)
    return ctypes.CDLL(str(folder / "host.so"))


class Arrays(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p * cuda.MOST),)


def value(kind, argument):
    if not isinstance(argument, ctypes.Array):
        return kind(argument)
    found = Arrays()
    found.at[: len(argument)] = [address or 0 for address in argument]
    return found


@pytest.fixture
def loops(library, monkeypatch):
    """The kernels in place of the loops of the processor."""
    monkeypatch.setattr(cuda, "WARP", 1)

    def function(name, *tensors):
        def loop(*arguments):
            values = [value(*pair) for pair in zip(ARGUMENTS[name], arguments, strict=True)]
            for kernel, work in cuda.KERNELS[name]:
                run = getattr(library, f"{kernel}_{NAMES[tensors[0].dtype]}")
                for at in range(-(-work(arguments) // SIZE) * SIZE):
                    library.thread(*map(ctypes.c_int64, (at // SIZE, SIZE, at % SIZE)))
                    run(*values)

        return loop

    def switch():
        for module in (enclosing, rows):
            monkeypatch.setattr(module, "function", function)

    return switch


@pytest.mark.one_in(2)
@dtypes
@products
@pytest.mark.parametrize("octagon", [False, True], ids=["box", "octagon"])
@pytest.mark.parametrize("shift", [None, (-0.1, 0.25)], ids=["lambda", "tilted"])
def test_planes_are_those_of_the_processor(product, octagon, shift, dtype, loops):
    domain = domain_of(((0.1, 6), (1e-2, 4)), 300, dtype, octagon=octagon)
    ends = [*domain.box, *(domain.bands if octagon else ())]
    ask = {"curved": product.curved, "share": 0.25, "shift": shift, "steps": 4}
    here = enclosing.planes(ends, **ask)
    loops()
    there = enclosing.planes(ends, **ask)
    near = torch.finfo(dtype).eps ** 0.5
    close = torch.isclose(there, here, rtol=near, atol=near).all(0).double().mean()
    assert close > (0.9 if dtype == torch.float32 else 0.97)  # the rest are equally low planes


@dtypes
@products
def test_strips_are_those_of_the_processor(product, dtype, loops):
    domain = domain_of(((0.1, 6), (1e-2, 4)), 300, dtype, octagon=True)
    ends = [*domain.box, *domain.bands]
    here = enclosing.strips(ends, curved=product.curved)
    loops()
    there = enclosing.strips(ends, curved=product.curved)
    near = torch.finfo(dtype).eps ** 0.5
    assert torch.isclose(there, here, rtol=near, atol=near).all(0).double().mean() > 0.97


@dtypes
@pytest.mark.parametrize("arguments", [1, 2, 3])
@pytest.mark.parametrize("slopes", [1, 3])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("own", [1, ROWS])
@pytest.mark.every_combination
def test_rows_are_those_of_the_processor(slopes, samples, own, arguments, dtype, loops):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    slope = draw(slopes, ROWS, 2, 5)
    lower, upper = ([draw(samples, own, 2, 5) for _ in range(arguments + 1)] for _ in range(2))
    batch = max(slopes, samples)
    worths = [*[draw(batch, ROWS, 2, 5) for _ in range(arguments)], draw(batch, ROWS)]
    center, half = draw(samples, 4, 5), draw(samples, 4, 5).abs()

    def ask():
        found, constant = rows.substitute(slope, lower, upper)
        gradient = rows.substitute_gradient(slope, lower, upper, worths)
        alone = rows.substitute_gradient(slope, lower, upper, worths, sides=False)[0]
        return [*found, constant, *gradient, alone, rows.minimum(slope, center, half)]

    here = ask()
    loops()
    torch.testing.assert_close(ask(), here, rtol=0, atol=300 * torch.finfo(dtype).eps)


def test_the_switch_turns_the_kernels_off(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    known = cuda_loops(torch.device("cuda", 0))
    assert known.functions is None
    assert SWITCH in known.reason


def test_arguments_are_packed_as_a_kernel_reads_them():
    x, y = torch.ones(2), torch.ones(3)
    arguments = (2, True, False, True, 4, 0.25, 0.5, -0.5, pointers(x, y), y.data_ptr())
    packed = cuda.packed(ARGUMENTS["planes"], arguments)
    whole = (ctypes.c_int64 * 5).from_buffer_copy(packed[:40])
    real = (ctypes.c_double * 3).from_buffer_copy(packed[40:64])
    addresses = (ctypes.c_uint64 * (cuda.MOST + 1)).from_buffer_copy(packed[64:])
    assert [*whole] == [2, 1, 0, 1, 4]
    assert [*real] == [0.25, 0.5, -0.5]
    assert [*addresses] == [x.data_ptr(), y.data_ptr(), *[0] * (cuda.MOST - 2), y.data_ptr()]
