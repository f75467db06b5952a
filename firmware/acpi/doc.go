// Package acpi builds the machine's ACPI tables: RSDP, RSDT, XSDT, FADT,
// FACS, MADT and a DSDT in AML of our own.
//
// The platform is the "fixed hardware" one with as little hardware as Linux
// accepts, not the hardware-reduced one. A FADT that says HW_REDUCED_ACPI
// makes Linux drop its legacy PIC driver (acpi_generic_reduced_hw_init in
// arch/x86/kernel/acpi/boot.c): the ISA interrupts lose their numbers, and the
// 8259 pair inside KVM stays unmasked behind an LINT0 in ExtINT mode, so the
// first UART interrupt would arrive as vector 4. What remains of the fixed
// hardware is one PM1a event block and one PM1a control block; there is no
// PM timer, whose reads would be exits, no GPE block and no SMI command port.
//
// The package knows guest memory and nothing else of the machine: every
// address and number comes in through Config.
package acpi
