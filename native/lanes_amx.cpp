#define EPILOGUE_LANES 16
#define EPILOGUE_DOTS
#define EPILOGUE_TILES
#define EPILOGUE_KERNELS kernels_amx
#define EPILOGUE_KERNELS_NAME "amx"
#include "lanes.inc"
