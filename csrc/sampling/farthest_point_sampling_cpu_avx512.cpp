#define FASTSHAPE_TREE_KERNELS kTreeKernelsAvx512
#include "sampling/farthest_point_sampling_cpu_kernels.h"
