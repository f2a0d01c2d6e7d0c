#define FASTSHAPE_TREE_KERNELS kTreeKernelsAvx2
#include "sampling/farthest_point_sampling_cpu_kernels.h"
