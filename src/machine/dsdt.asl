/* The board in ACPI's language: what stock kernels need to find its fixed devices, route PCI
 * interrupts and power off. Compiled by iasl when ring3 is built. ACPI 6.4. */
DefinitionBlock ("dsdt.aml", "DSDT", 2, "RING3 ", "RING3PC ", 0x00000001)
{
    Name (\_S5, Package () { 5, 5, 0, 0 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xff, 0, 0x100)
                IO (Decode16, 0x0cf8, 0x0cf8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0cf7, 0, 0x0cf8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0d00, 0xffff, 0, 0xf300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                             0, 0x000a0000, 0x000bffff, 0, 0x00020000)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                             0, 0xc0000000, 0xfebfffff, 0, 0x3ec00000)
            })

            /* Slot s, pin p: PIRQ (s + p - 1) mod 4; where that goes is the ISA bridge's to say. */
            Method (_PRT, 0, Serialized)
            {
                Local0 = Package (128) {}
                Local1 = 0
                While (Local1 < 128)
                {
                    Switch (ToInteger (((Local1 >> 2) + (Local1 & 3) + 3) & 3))
                    {
                        Case (0) { Local2 = Package (4) { 0, 0, LNKA, 0 } }
                        Case (1) { Local2 = Package (4) { 0, 0, LNKB, 0 } }
                        Case (2) { Local2 = Package (4) { 0, 0, LNKC, 0 } }
                        Default  { Local2 = Package (4) { 0, 0, LNKD, 0 } }
                    }
                    Local2 [0] = (((Local1 >> 2) << 16) | 0xffff)
                    Local2 [1] = (Local1 & 3)
                    Local0 [Local1] = Local2
                    Local1++
                }
                Return (Local0)
            }

            Method (LSTA, 1)
            {
                If (Arg0 & 0x80) { Return (0x09) }
                Return (0x0b)
            }
            Method (LCRS, 1, Serialized)
            {
                Name (BUF, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 0 } })
                CreateDWordField (BUF, 5, LIRQ)
                If (!(Arg0 & 0x80)) { LIRQ = Arg0 & 0x0f }
                Return (BUF)
            }
            Device (LNKA)
            {
                Name (_HID, EisaId ("PNP0C0F"))
                Name (_UID, 1)
                Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 10, 11 } })
                Method (_STA) { Return (LSTA (\_SB.PCI0.ISA.PRQA)) }
                Method (_CRS) { Return (LCRS (\_SB.PCI0.ISA.PRQA)) }
                Method (_DIS) { \_SB.PCI0.ISA.PRQA = 0x80 }
                Method (_SRS, 1) { CreateDWordField (Arg0, 5, LIRQ) \_SB.PCI0.ISA.PRQA = LIRQ }
            }
            Device (LNKB)
            {
                Name (_HID, EisaId ("PNP0C0F"))
                Name (_UID, 2)
                Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 10, 11 } })
                Method (_STA) { Return (LSTA (\_SB.PCI0.ISA.PRQB)) }
                Method (_CRS) { Return (LCRS (\_SB.PCI0.ISA.PRQB)) }
                Method (_DIS) { \_SB.PCI0.ISA.PRQB = 0x80 }
                Method (_SRS, 1) { CreateDWordField (Arg0, 5, LIRQ) \_SB.PCI0.ISA.PRQB = LIRQ }
            }
            Device (LNKC)
            {
                Name (_HID, EisaId ("PNP0C0F"))
                Name (_UID, 3)
                Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 10, 11 } })
                Method (_STA) { Return (LSTA (\_SB.PCI0.ISA.PRQC)) }
                Method (_CRS) { Return (LCRS (\_SB.PCI0.ISA.PRQC)) }
                Method (_DIS) { \_SB.PCI0.ISA.PRQC = 0x80 }
                Method (_SRS, 1) { CreateDWordField (Arg0, 5, LIRQ) \_SB.PCI0.ISA.PRQC = LIRQ }
            }
            Device (LNKD)
            {
                Name (_HID, EisaId ("PNP0C0F"))
                Name (_UID, 4)
                Name (_PRS, ResourceTemplate () { Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) { 10, 11 } })
                Method (_STA) { Return (LSTA (\_SB.PCI0.ISA.PRQD)) }
                Method (_CRS) { Return (LCRS (\_SB.PCI0.ISA.PRQD)) }
                Method (_DIS) { \_SB.PCI0.ISA.PRQD = 0x80 }
                Method (_SRS, 1) { CreateDWordField (Arg0, 5, LIRQ) \_SB.PCI0.ISA.PRQD = LIRQ }
            }

            Device (ISA)
            {
                Name (_ADR, 0x00010000)

                /* PIRQ route control: bits 0-3 the interrupt, bit 7 off. 82371SB (PIIX3), 2.3.10. */
                OperationRegion (ROUT, PCI_Config, 0x60, 4)
                Field (ROUT, ByteAcc, NoLock, Preserve) { PRQA, 8, PRQB, 8, PRQC, 8, PRQD, 8 }

                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate () { IO (Decode16, 0x70, 0x70, 1, 2) IRQNoFlags () {8} })
                }
                Device (TIMR)
                {
                    Name (_HID, EisaId ("PNP0100"))
                    Name (_CRS, ResourceTemplate () { IO (Decode16, 0x40, 0x40, 1, 4) IRQNoFlags () {0} })
                }
                Device (KBD)
                {
                    Name (_HID, EisaId ("PNP0303"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x60, 0x60, 1, 1) IO (Decode16, 0x64, 0x64, 1, 1) IRQNoFlags () {1}
                    })
                }
                Device (MOU)
                {
                    Name (_HID, EisaId ("PNP0F13"))
                    Name (_CRS, ResourceTemplate () { IRQNoFlags () {12} })
                }
                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 1)
                    Name (_CRS, ResourceTemplate () { IO (Decode16, 0x3f8, 0x3f8, 1, 8) IRQNoFlags () {4} })
                }
            }
        }

        Device (HPET)
        {
            Name (_HID, EisaId ("PNP0103"))
            Name (_CRS, ResourceTemplate () { Memory32Fixed (ReadOnly, 0xfed00000, 0x400) })
        }

        Device (PWRB)
        {
            Name (_HID, EisaId ("PNP0C0C"))
        }
    }
}
