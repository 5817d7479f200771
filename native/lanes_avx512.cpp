#define EPILOGUE_LANES 16
#define EPILOGUE_KERNELS kernels_avx512
#define EPILOGUE_KERNELS_NAME "avx512"
#include "lanes.inc"
