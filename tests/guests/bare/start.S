// A kernel of a few instructions whose only program runs in user mode, and the same program of Linux: one file, so that
// both have the same code at the same addresses.
//
// The kernel is entered in 32-bit protected mode by a PVH note. It maps 4 GiB one to one for the user, with pages of
// 2 MiB, switches SSE on, goes to long mode, and to level 3 with the privilege for ports (IOPL 3). No interrupt is ever
// taken, so there is no IDT.
	.section .note.pvh, "a", @note
	.long 4, 4, 18			// XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long enter

	.text
	.code32
	.globl enter
enter:
	cld
	mov $tables + 0x1000, %eax	// PML4[0], and four of the next level
	or $7, %eax
	mov %eax, tables
	mov $4, %ecx
	mov $tables + 0x2007, %eax
	mov $tables + 0x1000, %edi
1:	mov %eax, (%edi)
	add $8, %edi
	add $0x1000, %eax
	loop 1b
	mov $2048, %ecx
	mov $0x87, %eax			// present, writable, user, 2 MiB
	mov $tables + 0x2000, %edi
2:	mov %eax, (%edi)
	add $8, %edi
	add $0x200000, %eax
	loop 2b
	mov $tables, %eax
	mov %eax, %cr3
	mov %cr4, %eax
	or $0x620, %eax			// PAE, OSFXSR, OSXMMEXCPT
	mov %eax, %cr4
	mov $0xc0000080, %ecx		// EFER.LME
	rdmsr
	bts $8, %eax
	wrmsr
	mov $0x80000033, %eax		// PG, NE, ET, MP, PE
	mov %eax, %cr0
	lgdt gdt_at
	ljmp $0x08, $long
	.code64
long:
	xor %eax, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $kernel_stack, %esp
	fninit
	pushq $0x1b			// SS
	pushq $user_stack
	pushq $0x3002			// IOPL 3
	pushq $0x23			// CS
	pushq $in_guest
	iretq
in_guest:
	movl $1, is_guest(%rip)
	call run

	.globl _start
_start:
	mov $user_stack, %esp
	call run

	.data
	.balign 8
gdt:	.quad 0
	.quad 0x00af9b000000ffff	// 08h: code of level 0
	.quad 0
	.quad 0x00cff3000000ffff	// 1Bh: data of level 3
	.quad 0x00affb000000ffff	// 23h: code of level 3
gdt_at:	.word . - gdt - 1
	.long gdt

	.bss
	.balign 4096
tables:	.skip 0x6000
	.skip 4096
kernel_stack:
	.skip 1 << 20
	.balign 16
user_stack:
	.section .note.GNU-stack, "", @progbits
