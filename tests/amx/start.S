# What a multiboot loader starts: 64-bit mode with AVX-512 and tiles switched on, memory at its own addresses, and
# handlers of exceptions that report them.
.section .multiboot, "a"
.align 4
.long 0x1BADB002, 0, -0x1BADB002

.section .bss
.align 4096
pml4: .skip 4096
pdpt: .skip 4096
idt: .skip 32 * 16
.align 64
.skip 1 << 20
stack:

.section .data
.align 8
gdt: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdtr: .word 23
.quad gdt
idtr: .word 32 * 16 - 1
.quad idt

.section .text
.code32
.globl _start
_start:
  cli
  movl $pdpt + 3, pml4
  movl $0x00000083, pdpt  # pages of 1 GB
  movl $pml4, %eax
  movl %eax, %cr3
  movl $0x40620, %eax  # PAE, SSE and its exceptions, XSAVE
  movl %eax, %cr4
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax  # long mode
  wrmsr
  movl $0x80000013, %eax
  movl %eax, %cr0
  lgdt gdtr
  ljmp $8, $in_long_mode

.code64
in_long_mode:
  movw $16, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movq $stack, %rsp
  movq $idt, %rdi
  movq $handlers, %rsi
  movl $32, %ecx
1:
  movq %rsi, %rax
  movw %ax, (%rdi)
  movl $0x8e000008, 2(%rdi)
  movb $0, 4(%rdi)
  shrq $16, %rax
  movw %ax, 6(%rdi)
  addq $16, %rdi
  addq $16, %rsi
  decl %ecx
  jnz 1b
  lidt idtr
  xorl %ecx, %ecx
  xorl %edx, %edx
  movl $0x600e7, %eax  # x87, SSE, AVX, AVX-512, the shapes of tiles and the tiles
  xsetbv
  call run_checks
1:
  hlt
  jmp 1b

.align 16
handlers:
.set number, 0
.rept 32
.align 16
  movl $number, %edi
  movq %rsp, %rsi
  jmp fault
.set number, number + 1
.endr

fault:
  andq $-64, %rsp
  call report_exception
1:
  hlt
  jmp 1b
