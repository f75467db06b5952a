// Package chipset is the machine's handful of plain devices: the 16550 UART,
// the RTC, the ACPI fixed hardware, the exit port and the reset of the keyboard controller.
// Everything else a guest sees is a VMBus device.
//
// A device knows its registers and nothing of where they are mapped; it
// drives its interrupt through an IRQ function and tells the machine of the
// events that end it through callbacks. Its methods run on virtual
// processors: they never block, and there is no register value that is an
// error, as there is none in hardware.
package chipset
