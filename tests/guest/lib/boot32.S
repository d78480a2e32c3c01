/* 32-bit guests: multiboot entry, exception stubs, catching, and the way to other modes. */
	.section .multiboot, "a"
	.align 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.globl _start
_start:
	cli
	cld
	mov $main_stack_end, %esp
	lgdt boot_gdtr
	ljmp $8, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	/* as firmware may have left it or not: EM 0, MP 1, NE 1, WP 0, AM 0, TS 0 */
	mov %cr0, %eax
	and $~(0x8005000c), %eax
	or $0x23, %eax
	mov %eax, %cr0
	xor %eax, %eax
	mov %eax, %cr4
	fninit
	push $0
	popf
	call guest_start
	hlt

	.section .rodata
	.align 8
boot_gdt:
	.quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
	.word 23
	.long boot_gdt

	.text
	.align 16
	.globl stubs
stubs:
	.set n, 0
	.rept 256
	.align 16
	.if !(n == 8 || (n >= 10 && n <= 14) || n == 17 || n == 21)
	push $0
	.endif
	push $n
	jmp common
	.set n, n + 1
	.endr
common:
	push %eax
	push %ecx
	push %edx
	push %ebx
	push %esp
	push %ebp
	push %esi
	push %edi
	push %ds
	push %es
	push %fs
	push %gs
	mov %esp, %ebx
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	cld
	push %ebx
	call trap_entry
	mov %ebx, %esp
	pop %gs
	pop %fs
	pop %es
	pop %ds
	pop %edi
	pop %esi
	pop %ebp
	add $4, %esp
	pop %ebx
	pop %edx
	pop %ecx
	pop %eax
	add $8, %esp
	iret

	.globl catch_set
catch_set:
	mov (%esp), %eax
	mov %eax, saved
	mov %ebx, saved + 4
	mov %ebp, saved + 8
	mov %esi, saved + 12
	mov %edi, saved + 16
	lea 4(%esp), %eax
	mov %eax, saved + 20
	movb $1, catch_armed
	xor %eax, %eax
	ret
	.globl catch_return
catch_return:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov %eax, %ss
	mov saved + 20, %esp
	push $2
	popf
	ljmp $8, $1f
1:	movb $0, catch_armed
	mov saved + 4, %ebx
	mov saved + 8, %ebp
	mov saved + 12, %esi
	mov saved + 16, %edi
	mov $1, %eax
	jmp *saved

/* go_asm(regs): ax bx cx dx si di bp sp ip flags cs ss ds es fs gs, 4 bytes each. To CPL 0 the
 * stack is not switched. */
	.globl go_asm
go_asm:
	mov 4(%esp), %eax
	testl $0x20000, 36(%eax)
	jz 1f
	push 60(%eax)
	push 56(%eax)
	push 48(%eax)
	push 52(%eax)
	jmp 2f
1:	testl $3, 40(%eax)
	jz 3f
2:	push 44(%eax)
	push 28(%eax)
3:	push 36(%eax)
	push 40(%eax)
	push 32(%eax)
	push (%eax)
	push 24(%eax)
	push 20(%eax)
	push 16(%eax)
	push 12(%eax)
	push 8(%eax)
	push 4(%eax)
	testl $0x20000, 36(%eax)
	jnz 4f
	mov 52(%eax), %es
	mov 56(%eax), %fs
	mov 60(%eax), %gs
	mov 48(%eax), %ds
4:	pop %ebx
	pop %ecx
	pop %edx
	pop %esi
	pop %edi
	pop %ebp
	pop %eax
	iret

/* ---- real mode. The trampoline is copied to 0x8000 = T ------------------------------------ */
	.globl real_switch, tramp, tramp_end
	.set T, 0x8000
real_switch:
	pusha
	sidt real_idtr
	mov %esp, real_esp
	movl $real_back, 0x70f8
	ljmp $0x38, $T                  /* 16-bit code segment, base 0 */
real_back:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov %eax, %ss
	mov real_esp, %esp
	popa
	push $2
	popf
	ret

	.code16
tramp:
	jmp tramp_in
	.org tramp + 4
/* From the vector stubs (CS 0): vector, IP, CS, FLAGS on the stack. */
	.set O, 0x7080
	mov %eax, %cs:O
	mov %ecx, %cs:O+4
	mov %edx, %cs:O+8
	mov %ebx, %cs:O+12
	mov %ebp, %cs:O+20
	mov %esi, %cs:O+24
	mov %edi, %cs:O+28
	movzwl %sp, %eax
	add $8, %eax                    /* as it was before the interrupt, 16 bits */
	mov %eax, %cs:O+16
	xor %eax, %eax
	pop %ax
	mov %eax, %cs:O+32
	pop %ax
	mov %eax, %cs:O+36
	pop %ax
	mov %eax, %cs:O+40
	pop %ax
	mov %eax, %cs:O+44
	mov %ds, %ax
	mov %eax, %cs:O+48
	mov %es, %ax
	mov %eax, %cs:O+52
	mov %fs, %ax
	mov %eax, %cs:O+56
	mov %gs, %ax
	mov %eax, %cs:O+60
	mov %ss, %ax
	mov %eax, %cs:O+64
	lgdtl %cs:(T + tramp_gdtr - tramp)
	mov %cs:0x70f8, %eax
	mov %eax, %cs:(T + 2 + tramp_jump - tramp)
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
tramp_jump:
	ljmpl $8, $0                    /* 66 ea offset32 sel */
	.align 4
tramp_gdtr:
	.word 23
	.long boot_gdt
tramp_idtr:
	.word 0x3ff
	.long 0
tramp_in:                               /* CS 0x38, 16 bits; the other segments are flat */
	lidtl (T + tramp_idtr - tramp)
	cmpl $0, 0x70fc
	jne 1f
	mov $0x40, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %fs
	mov %ax, %gs
1:	mov $0x40, %ax
	mov %ax, %ss
	mov %cr0, %eax
	and $~1, %eax
	mov %eax, %cr0
	ljmp $0, $(T + 2f - tramp)
2:	xor %ax, %ax
	mov %ax, %ds
	mov 0x7000+44, %ss
	mov 0x7000+28, %esp
	pushw 0x7000+36
	pushw 0x7000+40
	pushw 0x7000+32
	mov 0x7000+52, %es
	mov 0x7000+56, %fs
	mov 0x7000+60, %gs
	mov 0x7000+4, %ebx
	mov 0x7000+8, %ecx
	mov 0x7000+12, %edx
	mov 0x7000+16, %esi
	mov 0x7000+20, %edi
	mov 0x7000+24, %ebp
	mov 0x7000, %eax
	mov 0x7000+48, %ds
	iretw
tramp_end:
	.code32

	.bss
	.align 16
saved:	.space 32
	.globl catch_armed
catch_armed: .space 4
real_esp: .space 4
real_idtr: .space 8
	.align 4096
	.globl trap_stack, trap_stack_end, user_stack, user_stack_end, main_stack_end
	.space 16384
main_stack_end:
trap_stack: .space 8192
trap_stack_end:
user_stack: .space 8192
user_stack_end:
	.space 4096
