#define EPILOGUE_LANES 16
#define EPILOGUE_DOTS
#define EPILOGUE_KERNELS kernels_avx512vnni
#define EPILOGUE_KERNELS_NAME "avx512vnni"
#include "lanes.inc"
