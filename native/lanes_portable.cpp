#define EPILOGUE_LANES 4
#define EPILOGUE_KERNELS kernels_portable
#define EPILOGUE_KERNELS_NAME "portable"
#include "lanes.inc"
