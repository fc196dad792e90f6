// What streams, events and graphs do with work: a launch, or what stands in for one of the array
// library's. See stream.cpp.
#pragma once
#include <functional>

#include "cuda/sim/runtime.h"

namespace convgrad::cuda::sim {

using Work = std::function<void()>;

// Whether work handed to the stream (null: the current device's default one) is done at once.
// Throws std::runtime_error where a card would refuse it.
bool runs_at_once(cudaStream_t stream);
// Does the work when it is the stream's turn: at once if runs_at_once(); in the graph alone if the
// stream is being captured.
void submit(cudaStream_t stream, Work work);
// Leaves the work, and all that is submitted after it, until somebody waits for the stream.
void defer(cudaStream_t stream, Work work);
// Does what the device's streams have left; for freeing memory, which waits on a card too.
void finish_device(int device);
// Gives a block of a device's memory back when the stream has done what it has left: as a memory
// pool's, which the stream's next work may use at once.
void release_in_order(void* p, cudaStream_t stream);

}  // namespace convgrad::cuda::sim
