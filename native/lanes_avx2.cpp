#define EPILOGUE_LANES 8
#define EPILOGUE_KERNELS kernels_avx2
#define EPILOGUE_KERNELS_NAME "avx2"
#include "lanes.inc"
