// The CUDA kernels as ordinary C++ that runs on the CPU.
//
// Every .cu file includes core/cuda_utils.cuh and nothing else of CUDA. Compiled by nvcc that is
// the real thing; compiled by a C++ compiler with FASTSHAPE_EMULATION it is this folder, and
// launch() runs the kernel on CPU pointers. So every kernel is tested, under the sanitizers too, on
// machines without a GPU. No wheel carries it.
//
// How to write a kernel for both:
//
//   struct Shared { float tile[256]; };                          // one struct, no __shared__
//   variables
//   __global__ void reverse(const float* in, float* out, int n) {
//     Shared& s = shared_memory<Shared>();
//     const int i = blockIdx.x * blockDim.x + threadIdx.x;
//     if (i < n) s.tile[threadIdx.x] = in[i];
//     __syncthreads();                                           // all threads of the block, from
//     one line if (i < n) out[i] = s.tile[blockDim.x - 1 - threadIdx.x];
//   }
//   launch("reverse", reverse, blocks, 256, sizeof(Shared), stream, in, out, n);
//
// - Threads are fibres: one runs until it waits (barrier, shuffle, vote), calls spin_wait() or
// returns. A loop that
//   waits for another thread's write must call spin_wait(), or it never ends.
// - Blocks of an ordinary launch run one after the other, some at the same time on other
// operating-system threads:
//   never let one wait for a later one. The blocks of a cluster, and all of a co-operative launch,
//   are co-resident.
// - set_schedule() chooses which fibre runs next at every switch point, and which block comes
// first: ascending,
//   descending, or random by a seed. In the random one, atomics are switch points too. A kernel
//   whose result depends on the schedule has a race.
// - Shared memory is exactly as large as launched, holds NaN until it is written, and its
// surroundings are poisoned
//   (AddressSanitizer) or checked when the block ends (plain build). Distributed shared memory is
//   another block's.
// - ThreadSanitizer sees one thread per CUDA thread. Barriers, __syncwarp, acquire/release and
// fences with atomics
//   order memory; shuffles and votes do not, exactly as on the device. Races between blocks show as
//   well.
//
// These stop the launch with a RuntimeError that names the op, the block, the thread and the line:
// a mask that does not name the caller, or names lanes that have exited; lanes or threads that meet
// at one barrier from different lines or with different operations; a shuffle from a lane outside
// the mask; a deadlock (with the list of who waits where) or live-lock; more shared memory used
// than launched; a launch that CUDA refuses (sizes, cluster, co-residency). Stricter than the
// device, which lets some of that pass: diverging shuffles that happen to pair up, masks with
// exited lanes.
//
// What it does not do: time anything; reorder memory accesses (a missing fence shows under
// ThreadSanitizer only); run a warp in lockstep; count registers; round rsqrtf and other
// approximate functions as the device does. Tensor cores and asynchronous copies need a wrapper in
// core/ whose emulated twin is its definition.
#pragma once

#if !defined(FASTSHAPE_EMULATION) || defined(__CUDACC__)
#error \
    "The emulation is for C++ compilers with FASTSHAPE_EMULATION; include core/cuda_utils.cuh instead."
#endif

#include "core/emulation/atomics.h"
#include "core/emulation/builtins.h"
#include "core/emulation/collectives.h"
#include "core/emulation/launch.h"
