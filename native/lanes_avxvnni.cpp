#define EPILOGUE_LANES 8
#define EPILOGUE_DOTS
#define EPILOGUE_KERNELS kernels_avxvnni
#define EPILOGUE_KERNELS_NAME "avxvnni"
#include "lanes.inc"
