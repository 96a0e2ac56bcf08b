// What goes wrong in a simulated world, and what its administrator does meanwhile. Each fault ends by
// itself after a while; heal() ends them all.
import type { SimHost } from "./machine.js";
import { VOLUME, type World } from "./world.js";

type Fault = readonly [weight: number, name: string, act: (faults: Faults) => void];

export class Faults {
  opensFail = false;
  startsHang = false;
  isActive = true;
  /** Fence commands under way that hang, or take their time: what ends them now. */
  readonly slowFences = new Set<() => void>();
  private readonly heals = new Set<() => void>();
  /** that have begun */
  count = 0;

  constructor(private readonly world: World) {}

  begin(): void {
    this.next();
  }

  private next(): void {
    const { time, chance } = this.world.universe;
    time.after(chance.between(100, 3500), () => {
      if (!this.isActive) return;
      const total = all.reduce((sum, [weight]) => sum + weight, 0);
      let left = chance.random() * total;
      const fault = all.find(([weight]) => {
        left -= weight;
        return left < 0;
      });
      if (fault) {
        const [, name, act] = fault;
        this.count++;
        this.world.universe.trace(`-- ${name}`);
        act(this);
      }
      this.next();
    });
  }

  heal(): void {
    this.isActive = false;
    for (const heal of [...this.heals]) heal();
    for (const end of [...this.slowFences]) end();
    this.keepEnabled();
  }

  /** Until then, or the end of all faults. */
  private during(lastsMs: number, heal: () => void): void {
    const once = () => {
      if (!this.heals.delete(once)) return;
      heal();
    };
    this.heals.add(once);
    this.world.universe.time.after(lastsMs, once);
  }

  private host(): SimHost {
    return this.world.universe.chance.pick(this.world.hosts);
  }

  /** Where the service is; some host if it is nowhere. */
  holderHost(): SimHost {
    const name = this.world.etcd.latest?.record.slot.holder?.host;
    return this.world.hosts.find((host) => host.name === name) ?? this.host();
  }

  private either(): SimHost {
    return this.world.universe.chance.is(0.65) ? this.holderHost() : this.host();
  }

  private process(what: "server" | "agent") {
    const { chance } = this.world.universe;
    const holder = this.world.etcd.latest?.record.slot.instance ?? "";
    for (const server of this.world.rules.servers)
      if (what === "server" && holder !== "" && server.instance === holder && chance.is(0.8))
        return server.process;
    const found = [...this.either().processes.values()].filter((process) => process.what === what);
    return found.length > 0 ? chance.pick(found) : undefined;
  }

  private lasts(): number {
    const { chance } = this.world.universe;
    // Around the grant's length, around W, and far beyond.
    return chance.pick([chance.between(100, 3000), chance.between(3000, 5500), chance.between(5000, 15_000)]);
  }

  kill(what: "server" | "agent"): void {
    this.process(what)?.signal("SIGKILL");
  }

  stop(what: "server" | "agent"): void {
    const process = this.process(what);
    if (!process) return;
    process.signal("SIGSTOP");
    this.during(this.lasts(), () => {
      if (process.state === "alive") process.signal("SIGCONT");
    });
  }

  stick(): void {
    const process = this.process(this.world.universe.chance.is(0.7) ? "server" : "agent");
    if (!process) return;
    process.main.isStuck = true;
    this.during(this.lasts(), () => {
      process.main.isStuck = false;
      process.wake();
    });
  }

  standStill(clockToo: boolean): void {
    const host = this.either();
    if (!host.isOn || host.isPaused) return;
    host.pause(clockToo);
    const { boots } = host;
    this.during(this.lasts(), () => {
      if (host.boots === boots && host.isOn) host.resume();
    });
  }

  powerLoss(): void {
    this.world.powerOff(this.either());
  }

  cut(out: boolean, into: boolean, hosts: readonly SimHost[] = [this.either()]): void {
    for (const host of hosts) {
      host.losesOut = out;
      host.losesIn = into;
    }
    this.during(this.lasts(), () => {
      for (const host of hosts) {
        host.losesOut = false;
        host.losesIn = false;
      }
    });
  }

  member(count: number): void {
    const { etcd, universe } = this.world;
    const first = Math.floor(universe.chance.random() * etcd.isUp.length);
    for (let i = 0; i < count; i++) {
      const member = (first + i) % etcd.isUp.length;
      etcd.setMember(member, false);
      this.during(this.lasts(), () => etcd.setMember(member, true));
    }
  }

  lossy(): void {
    this.world.etcd.loss = this.world.universe.chance.between(0.02, 0.5);
    this.during(this.lasts(), () => {
      this.world.etcd.loss = 0;
    });
  }

  storeStalls(): void {
    const host = this.either();
    host.storeHangs = true;
    this.during(this.lasts(), () => this.world.store.flows(host));
  }

  wallJumps(): void {
    this.host().wallOffsetMs = this.world.universe.chance.between(-4e6, 4e6);
  }

  openFails(): void {
    this.opensFail = true;
    this.during(this.lasts(), () => {
      this.opensFail = false;
    });
  }

  startHangs(): void {
    this.startsHang = true;
    this.during(this.lasts(), () => {
      this.startsHang = false;
      for (const { process } of this.world.rules.servers) {
        process.main.isStuck = false;
        process.wake();
      }
    });
  }

  fencesFail(): void {
    this.world.fencesFail = true;
    this.during(this.lasts() * 2, () => {
      this.world.fencesFail = false;
    });
  }

  cutClient(): void {
    this.cut(true, this.world.universe.chance.is(0.5), [
      this.world.universe.chance.pick(this.world.clientHosts),
    ]);
  }

  // The administrator.

  disable(): void {
    const { admin } = this.world;
    void admin.setAdminState(VOLUME, "disabled").catch(() => {});
    this.during(this.lasts(), () => this.enable());
  }

  private enable(): void {
    void this.world.admin.setAdminState(VOLUME, "enabled").catch(() => {});
  }

  /** What was asked for before may be stored yet: the administrator looks again. */
  private keepEnabled(): void {
    if (this.world.etcd.latest?.record.admin === "disabled") this.enable();
    this.world.universe.time.after(500, () => this.keepEnabled());
  }

  move(): void {
    void this.world.admin.move(VOLUME, this.host().name).catch(() => {});
  }

  /** After having taken the power of the host that was seen to be silent, and perhaps long after. */
  async confirm(): Promise<void> {
    const { world } = this;
    const view = await world.admin.describe(VOLUME).catch(() => undefined);
    const host = world.hosts.find(({ name }) => name === view?.holder?.host);
    if (!view?.holder?.silent || !host) return;
    world.powerOff(host);
    const { time, chance } = world.universe;
    await new Promise<void>((resolve) => {
      time.after(chance.between(0, 15_000), resolve);
    });
    await world.admin.confirmFence(VOLUME, view.epoch, "the administrator").catch(() => {});
  }

  reportBad(): void {
    const epoch = this.world.etcd.latest?.record.epoch ?? 0n;
    this.world.admin.reportBad(VOLUME, epoch, "the administrator thinks so");
  }
}

const all: readonly Fault[] = [
  [4, "kill a server", (faults) => faults.kill("server")],
  [3, "kill an agent", (faults) => faults.kill("agent")],
  [4, "stop a server", (faults) => faults.stop("server")],
  [2, "stop an agent", (faults) => faults.stop("agent")],
  [2, "a main thread is stuck", (faults) => faults.stick()],
  [3, "a host stands still", (faults) => faults.standStill(false)],
  [2, "a host and its clock stand still", (faults) => faults.standStill(true)],
  [3, "a host loses its power", (faults) => faults.powerLoss()],
  [3, "a host is cut off", (faults) => faults.cut(true, true)],
  [2, "a host's messages are lost", (faults) => faults.cut(true, false)],
  [2, "messages to a host are lost", (faults) => faults.cut(false, true)],
  [2, "a member of etcd is down", (faults) => faults.member(1)],
  [2, "etcd has no quorum", (faults) => faults.member(2)],
  [3, "etcd's network is lossy", (faults) => faults.lossy()],
  [3, "the way to the store stands still", (faults) => faults.storeStalls()],
  [2, "a wall clock jumps", (faults) => faults.wallJumps()],
  [1, "opening fails", (faults) => faults.openFails()],
  [1, "a start hangs", (faults) => faults.startHangs()],
  [2, "fences fail", (faults) => faults.fencesFail()],
  [1, "a client is cut off", (faults) => faults.cutClient()],
  [1, "disable", (faults) => faults.disable()],
  [2, "move", (faults) => faults.move()],
  [2, "confirm a fence", (faults) => void faults.confirm()],
  [1, "report bad", (faults) => faults.reportBad()],
];
