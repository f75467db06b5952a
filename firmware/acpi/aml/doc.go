// Package aml emits ACPI Machine Language (ACPI specification, chapter
// "ACPI Machine Language (AML) Specification").
//
// Every function returns the bytes of one term, so a definition block is
// written as a nested expression. The package emits only; it neither parses
// nor runs AML, and it knows no table, no device and no guest memory. What it
// is given comes from this program, so a malformed name or an operand out of
// range is a bug and panics.
package aml
