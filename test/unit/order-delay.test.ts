/** How long an agent waits with an order: by its own clock, whatever the wall clocks of the hosts say. */
import { describe, expect, it } from "vitest";
import { backoffMaxMs, moveLimitMs, OrderDelay } from "../../src/broker/order_delay.js";
import { vacantSlot } from "../../src/broker/record.js";

const WRITTEN_MS = Date.parse("2099-01-01T00:00:00.000Z");
const text = (ms: number) => new Date(ms).toISOString();

function delay() {
  const clock = { nowMs: 1000 };
  return { clock, order: new OrderDelay("here", { monotonicMs: () => clock.nowMs }) };
}

describe("an agent", () => {
  it("orders again when the writer's wait has passed here, though the writer's clock is years ahead", () => {
    const { clock, order } = delay();
    const slot = vacantSlot("ended", text(WRITTEN_MS), text(WRITTEN_MS + 700));
    expect(order.leftMs(slot)).toBe(700);
    clock.nowMs += 400;
    // Other changes of the record begin no new wait.
    expect(order.leftMs({ ...slot })).toBe(300);
    clock.nowMs += 300;
    expect(order.leftMs(slot)).toBe(0);
    const again = vacantSlot("ended", text(WRITTEN_MS + 1), text(WRITTEN_MS + 900_000));
    expect(order.leftMs(again)).toBe(backoffMaxMs);
  });

  it("waits for nothing where nobody failed, and leaves a move to the host that shall have it for a while", () => {
    const { clock, order } = delay();
    const free = vacantSlot("stopped", text(WRITTEN_MS));
    expect(order.leftMs(free)).toBe(0);
    expect(order.leftMs({ ...free, move_to: "here" })).toBe(0);
    const elsewhere = { ...free, move_to: "there" };
    expect(order.leftMs(elsewhere)).toBe(moveLimitMs);
    clock.nowMs += moveLimitMs;
    expect(order.leftMs(elsewhere)).toBe(0);
  });
});
