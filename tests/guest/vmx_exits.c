#include "lib/vmx.h"
const char guest_name[]="vmx_exits";int main(void){return 0;}
