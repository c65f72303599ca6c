#include "../common.cuh"
#include "../training.cuh"
// lamb_ratio k1: the factor of a step of LAMB, |p| / |u|, or 1 where one of them is zero.
//
// Parallel over: one block.
// squares [2, tiles] f64, of lamb_moments; ratio [1] f64.
// Arithmetic: f64; every thread adds its tiles in order, then the threads by a tree.

extern "C" __global__ void lamb_ratio(const double* squares, double* ratio, int tiles) {
    SHARED_MEMORY;
    double* scratch = reinterpret_cast<double*>(shared);  // [threads]
    double of_values = 0.0, of_updates = 0.0;
    for (int i = threadIdx.x; i < tiles; i += blockDim.x) {
        of_values += squares[i];
        of_updates += squares[tiles + i];
    }
    of_values = sqrt(sum_of_block(of_values, scratch));
    of_updates = sqrt(sum_of_block(of_updates, scratch));
    if (threadIdx.x == 0) ratio[0] = of_values != 0.0 && of_updates != 0.0 ? of_values / of_updates : 1.0;
}
