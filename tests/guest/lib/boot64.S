/* 64-bit guests: multiboot entry, long mode on an identity map, exception stubs, catching. */
	.section .multiboot, "a"
	.align 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	mov $main_stack_end, %esp
	lgdt boot_gdtr
	ljmp $0x18, $1f
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %ecx, %ecx                  /* four directories of 512 large pages, user, writable */
1:	mov %ecx, %eax
	shl $21, %eax
	or $0xe7, %eax
	mov %eax, boot_pd(,%ecx,8)
	movl $0, boot_pd+4(,%ecx,8)
	inc %ecx
	cmp $2048, %ecx
	jne 1b
	movl $boot_pd + 7, boot_pdpt
	movl $boot_pd + 0x1007, boot_pdpt + 8
	movl $boot_pd + 0x2007, boot_pdpt + 16
	movl $boot_pd + 0x3007, boot_pdpt + 24
	movl $boot_pdpt + 7, boot_pml4
	mov %cr0, %eax
	and $~(0x8005000c), %eax
	or $0x23, %eax
	mov %eax, %cr0
	mov $0x620, %eax                /* PAE, OSFXSR, OSXMMEXCPT */
	mov %eax, %cr4
	mov $boot_pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	mov $0x901, %eax                /* NXE, LME, SCE */
	xor %edx, %edx
	wrmsr
	mov %cr0, %eax
	or $0x80010000, %eax            /* PG, WP */
	mov %eax, %cr0
	ljmp $8, $1f
	.code64
1:	mov $main_stack_end, %esp
	fninit
	push $0
	popf
	call guest_start
	hlt

	.section .rodata
	.align 8
boot_gdt:
	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdtr:
	.word 31
	.long boot_gdt, 0

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
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rbx
	mov %rsp, %rdi
	cld
	and $-16, %rsp
	call trap_entry
	mov %rbx, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp
	iretq

	.globl catch_set
catch_set:
	mov (%rsp), %rax
	mov %rax, saved
	mov %rbx, saved + 8
	mov %rbp, saved + 16
	mov %r12, saved + 24
	mov %r13, saved + 32
	mov %r14, saved + 40
	mov %r15, saved + 48
	lea 8(%rsp), %rax
	mov %rax, saved + 56
	movb $1, catch_armed
	xor %eax, %eax
	ret
	.globl catch_return
catch_return:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov saved + 56, %rsp
	push $2
	popf
	push $8
	push $1f
	lretq
1:	movb $0, catch_armed
	mov saved + 8, %rbx
	mov saved + 16, %rbp
	mov saved + 24, %r12
	mov saved + 32, %r13
	mov saved + 40, %r14
	mov saved + 48, %r15
	mov $1, %eax
	jmp *saved

/* go_asm(regs): ax bx cx dx si di bp sp ip flags r8-r15, 8 bytes each; cs ss ds es fs gs, 4. FS
 * and GS are left alone (their bases are MSRs). */
	.globl go_asm
go_asm:
	mov 148(%rdi), %eax
	push %rax
	push 56(%rdi)
	push 72(%rdi)
	mov 144(%rdi), %eax
	push %rax
	push 64(%rdi)
	mov 152(%rdi), %ds
	mov 156(%rdi), %es
	mov 0(%rdi), %rax
	mov 8(%rdi), %rbx
	mov 16(%rdi), %rcx
	mov 24(%rdi), %rdx
	mov 32(%rdi), %rsi
	mov 48(%rdi), %rbp
	mov 80(%rdi), %r8
	mov 88(%rdi), %r9
	mov 96(%rdi), %r10
	mov 104(%rdi), %r11
	mov 112(%rdi), %r12
	mov 120(%rdi), %r13
	mov 128(%rdi), %r14
	mov 136(%rdi), %r15
	mov 40(%rdi), %rdi
	iretq

/* ---- other processors: copied to 0x8000, entered in real mode by SIPI 8, then ap_entry() ---- */
	.globl ap_tramp, ap_tramp_end
	.set T, 0x8000
	.code16
ap_tramp:
	cli
	xor %ax, %ax
	mov %ax, %ds
	lgdtl T + ap_gdtr - ap_tramp
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $0x18, $(T + ap32 - ap_tramp)
	.code32
ap32:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $0x620, %eax
	mov %eax, %cr4
	mov $boot_pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	mov $0x901, %eax
	xor %edx, %edx
	wrmsr
	mov $0x80010033, %eax
	mov %eax, %cr0
	ljmp $8, $ap64
	.align 8
ap_gdtr:
	.word 31
	.long boot_gdt
ap_tramp_end:
	.code64
ap64:	mov $ap_stack_end, %esp
	mov $gdt_ptr, %eax
	lgdt (%rax)
	mov $idt_ptr, %eax
	lidt (%rax)
	call ap_entry
1:	cli
	hlt
	jmp 1b
	.weak ap_entry
	.data
gdt_ptr: .word 2047
	.quad gdt
idt_ptr: .word 4095
	.quad idt

	.bss
	.align 16
	.space 4096
ap_stack_end:
saved:	.space 64
	.globl catch_armed
catch_armed: .space 8
	.align 4096
	.globl boot_pml4, boot_pdpt, boot_pd
boot_pml4: .space 4096
boot_pdpt: .space 4096
boot_pd: .space 16384
	.globl trap_stack, trap_stack_end, user_stack, user_stack_end, main_stack_end
	.space 16384
main_stack_end:
trap_stack: .space 8192
trap_stack_end:
user_stack: .space 8192
user_stack_end:
	.space 4096
