// Types of what the page uses out of preact-htm.js.
type Set<T> = (value: T | ((old: T) => T)) => void;
type Effect = () => void | (() => void);
export function html(strings: TemplateStringsArray, ...values: unknown[]): any;
export function render(tree: any, place: Element): void;
export function useCallback<T extends (...values: any[]) => any>(callback: T, inputs: unknown[]): T;
export function useEffect(effect: Effect, inputs?: unknown[]): void;
export function useLayoutEffect(effect: Effect, inputs?: unknown[]): void;
export function useMemo<T>(make: () => T, inputs: unknown[]): T;
export function useRef<T>(first: T): { current: T };
export function useState<T>(first: T | (() => T)): [T, Set<T>];
